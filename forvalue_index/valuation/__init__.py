"""One file a question: query, values, explain."""
