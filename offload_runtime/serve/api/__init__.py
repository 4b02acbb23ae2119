"""From the JSON of requests to what the runtime takes, and from its steps to the JSON of answers. Nothing does I/O."""
