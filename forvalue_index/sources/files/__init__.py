"""Files, folders, addresses, frames and the hub: whatever holds rows, read row by row."""
