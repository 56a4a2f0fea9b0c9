"""What each single change of a policy space loses, everything else left as it is.

`measured_losses` runs the changed networks, `losses_around` those around a compressed one;
`first_order_losses` and `second_order_losses` estimate from gradients, cheaply. All give a mapping from
coordinate name to the losses of its values, in nats a sample, 0 at the last value: what agents get as
``Problem.losses`` and ``Problem.losses_around``.
"""

from .around import losses_around
from .measured import measured_losses
from .orders import first_order_losses, second_order_losses

__all__ = ["first_order_losses", "losses_around", "measured_losses", "second_order_losses"]
