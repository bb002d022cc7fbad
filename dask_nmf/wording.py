"""The texts of scikit-learn's NMF, by which its users know what is wrong."""

NOT_CONVERGED = "Maximum number of iterations %d reached. Increase it to improve convergence."
CD_LOSS = "Invalid beta_loss parameter: solver 'cd' does not handle beta_loss = {!r}"
ZEROS = (
    "When beta_loss <= 0 and X contains zeros, the solver may diverge. Please add small values to "
    "X, or use a positive beta_loss."
)
MU_AND_ZEROS = (
    "The multiplicative update ('mu') solver cannot update zeros present in the initialization, "
    "and so leads to poorer results when used jointly with init='nndsvd'. You may try "
    "init='nndsvda' or init='nndsvdar' instead."
)
IGNORED = (
    "When init!='custom', provided W or H are ignored. Set  init='custom' to use them as "
    "initialization."
)
W_NOT_USED = "When update_H=False, the provided initial W is not used."
