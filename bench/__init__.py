"""Benches: what graphbit costs, beside what others cost for the same work in the same minutes. See README.md."""
