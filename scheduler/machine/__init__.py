"""The machine to plan for, from the system, the driver, data sheets and measurements. Only cuda.py imports torch."""
