"""Methods that stand for all in tests of what does not depend on their numbers.

Those are checked by `test_tableaus` and by the orders in `test_integrate`, for every method. These
six differ in code: told and chosen steps, one and more stages, slopes that the next step takes
over, memory, a corrector, cubic output and one of their own.
"""

KINDS = ("euler", "rk4", "ab3", "abm2", "bosh3", "dopri5")
