"""From a plan to loaded models: what is missing is fetched or quantized first."""
