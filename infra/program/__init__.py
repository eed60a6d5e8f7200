"""The Pulumi program: `stack.deploy()` reads the settings, builds the components, and exports the outputs."""
