"""The stories: what happens, in which order."""

import logging

from tasks.engine import redaction

logging.getLogger("featherweight").setLevel(logging.INFO)  # so that a run's page in Prefect shows what its stages say
redaction.watch_logs()  # a worker imports a flow and calls it, and Prefect keeps what is logged in its database
