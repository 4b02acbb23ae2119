"""The HTTP server, and the page it shows at `/`."""
