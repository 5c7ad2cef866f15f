"""umvm's stand-in for `fusepy` in guests; see umvm.standin."""

import _umvm_standin  # type: ignore[import-not-found]

_umvm_standin.become(__name__)
