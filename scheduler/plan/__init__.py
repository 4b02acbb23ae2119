"""What lives where and what it costs: pure functions of models and machine. Imports no torch."""
