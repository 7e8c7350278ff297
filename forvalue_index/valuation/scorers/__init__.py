"""Other scores to hold values against, one file each."""
