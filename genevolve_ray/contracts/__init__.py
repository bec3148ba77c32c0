"""Contracts of the plug-in roles, as checks that an author can run: `genevolve plugins check`, or from any test.

Each module holds the checks of one role as plain async functions `check_*(subject, case)`. A check that fails raises
AssertionError with the values that broke the contract; `check_<role>` runs them all.
"""
