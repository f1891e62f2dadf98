"""`python -m mindgw` is `mindgw`."""

import sys

from mindgw.cli.app import main

sys.exit(main())
