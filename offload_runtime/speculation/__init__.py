"""Drafts trees, scores them by the target, verifies them, and learns which of them pay off.

methods.py lists the ways to draft; a draft is a `Draft` (draft.py), with heads/ and lookup/ for the other kinds.
"""
