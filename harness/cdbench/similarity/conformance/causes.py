"""What usually makes a CKA wrong. The members are the help text."""

from enum import Enum


class Cause(Enum):
    """Why an implementation breaks a law."""

    NOT_CENTRED = "the features are not centred: subtract the mean of each column over the samples"
    HALF_CENTRED = "only one of the two representations is centred"
    WRONG_AXIS = "the rows are centred instead of the columns: the mean goes over the samples (dim 0)"
    CENTRING_MATRIX = "the centring matrix is not I − 11ᵀ/n"
    SONG_UNCENTRED = (
        "the sums run over uncentred features: right in exact arithmetic, but the mean cancels only to rounding; centre the "
        "features before the Gram matrix"
    )
    EPSILON = "an eps is added to a denominator or under a root: small activations vanish in it"
    CLAMP = "the value is clamped: a negative debiased CKA is lost, and with it the gradient"
    BIASED = "the biased estimator is returned for the debiased one: at n << d it is near 1 whatever the features"
    MIXED = "an unbiased numerator over biased denominators"
    COEFFICIENT = "a coefficient of Song's formula is wrong: −2/(n−2) and +1/((n−1)(n−2))"
    DIAGONAL = "the diagonals of the Gram matrices are not taken out as Song's formula has it"
    NORMALISATION = "the normalisation is not √(HSIC(x, x) · HSIC(y, y))"
    POWER = "a square or a root is missing, or one too many"
    STANDARDISED = "the features are standardised: CKA weighs directions by their variance, do not divide by it"
    WHITENED = "the features are whitened: that is CCA, not CKA"
    DISTANCE = "a distance is returned (an angle, or 1 − CKA) instead of the similarity"
    PAIRING = "the rows of x and y are not of the same samples in the same order"
    ROWS = "the rows are not independent samples: positions are flattened into rows, or rows are padded or repeated"
    LAST_BATCH = "only the last batch is kept, or the last few"
    CONSUMED = "compute() changes what was gathered: called again, or between two batches, it gives another value"
    SUBSET = "of many samples only some are used: a cap, a chunk that is dropped, another way from some number on"
    MEAN_OF_BATCHES = (
        "the CKA of batches is averaged: a mean of ratios keeps the bias of each; sum the HSICs, divide once"
    )
    HALF_PRECISION = "products are taken in half precision: widen to float32 first, also under autocast"
    OVERFLOW = "squares or fourth powers overflow or vanish: scale the input by a power of two first"
    DETACHED = (
        "an input is detached from the graph (detach, no_grad, item, or a way through NumPy): no gradient reaches it"
    )
    GRADIENT = (
        "the gradient is not that of the value: a backward pass by hand, or a part of the value left out of the graph"
    )
    IN_PLACE = "the input is changed in place"
    RANDOM = "the value depends on a random generator: rows or features are sampled or projected"
    SILENT = "a number is returned where there is no CKA: let bad input raise"
    TRUNCATED = "features are cut to a common width: CKA compares any two widths"
    NARROWED = (
        "the input is narrowed to float32: right to seven digits; where that is meant, test it with --dtype float32"
    )
    NO_NUMBER = (
        "it gives no number for ordinary input; what it did stands under the laws (for float32 only: --dtype float32)"
    )
    FAILS = (
        "it fails, or gives no finite number, on input that has a CKA: what it did, and on what, stands under the laws"
    )
    ROUNDED = (
        "the value is not formed by products, sums, one root and one division alone (but by logarithms, or a scale that is no "
        "power of two): right, and not to the last bit"
    )
    ROUTE = "the route for the other shape (n < d or n > d) is wrong"
