"""`weight_gradient`: the gradient of the loss for one factor, d > 1, features last."""
