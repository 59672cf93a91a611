"""The book: chapters, pages, and what builds them."""
