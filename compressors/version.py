"""The version of what compression does, by which stored accuracies are told apart."""

#: To be raised by hand with every change that gives a policy another network, be it in the last bit:
#: pruning, factorisation, recalibration, rounding, the simulation. Accuracies of other versions are not used.
COMPRESSOR_VERSION = 4
