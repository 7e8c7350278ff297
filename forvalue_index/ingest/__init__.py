"""Each new sample is embedded once and stored."""
