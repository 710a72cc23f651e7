"""Commands for the machine that is to run the model; none needs torch."""
