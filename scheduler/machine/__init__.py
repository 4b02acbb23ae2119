"""What there is to plan with: the machine, as it says itself, as data sheets have it, as it was measured. No torch."""
