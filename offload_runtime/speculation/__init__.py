"""Drafts trees and learns which of them pay off."""
