"""Any file becomes samples, or says why not."""
