"""What is assumed: the Pyro program, its parameters and priors, the kernel and the complete conditionals."""
