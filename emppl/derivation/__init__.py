"""From a model and the shapes of its data to the derived algorithm, and the plan that prints it."""
