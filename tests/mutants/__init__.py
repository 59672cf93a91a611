"""Changes the book's code, its equations and its checks on purpose, and counts who notices.

`nox -s mutants -- <slug>` runs all of it for a chapter and records the result in
`book/recordings/mutants/<slug>.json`, which the page "What is checked" reads.
"""
