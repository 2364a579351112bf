"""Laws of the layers around attention, one file for each operation; `layer_calls` is what they share."""
