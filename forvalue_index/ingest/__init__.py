"""Each new sample is embedded once and stored, in the order of reading."""
