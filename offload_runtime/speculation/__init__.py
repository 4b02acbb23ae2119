"""Drafting trees and learning which of them pay."""
