"""The pages of the labeling application: a Starlette app over a store."""
