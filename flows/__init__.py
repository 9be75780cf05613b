"""The stories: what happens, in which order."""

import logging

logging.getLogger("featherweight").setLevel(logging.INFO)  # so that a run's page in Prefect shows what its stages say
