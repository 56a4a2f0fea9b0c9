"""What each single change of a policy space loses, everything else left as it is.

`measured_losses` runs the changed networks; `first_order_losses` and `second_order_losses` estimate the same
from gradients, cheaply. All three give a mapping from coordinate name to the losses of its values, in nats a
sample, 0 at the last value: what agents get as ``Problem.losses``.
"""

from .measured import measured_losses
from .orders import first_order_losses, second_order_losses

__all__ = ["first_order_losses", "measured_losses", "second_order_losses"]
