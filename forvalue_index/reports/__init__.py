"""Results as JSON documents and pages."""
