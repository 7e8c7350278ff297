"""Search indexes over rows, one file a kind. The one home of FAISS."""
