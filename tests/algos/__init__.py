"""Each chapter's algorithms against independent oracles."""
