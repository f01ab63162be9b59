"""Ground floor: a task is data, preprocessing, model, loss and metrics, in one declarative object."""
