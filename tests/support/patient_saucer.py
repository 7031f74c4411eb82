"""The command line, whose workers have all the time that a busy machine needs to give their runs back at a stop."""

from saucer.cli.main import main
from saucer.local import stack
from saucer.local.service_process import ServiceProcess

RELEASE_S = 60.0

if __name__ == "__main__":
    stack.WORKER_RELEASE_S = RELEASE_S
    ServiceProcess.stop_timeout_s = RELEASE_S + 10.0
    main()
