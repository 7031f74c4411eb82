"""Leases a run from training and does it: prepares data, trains with MMDetection, exports, predicts, uploads.

The parent process (agent) talks to the other services. The child process (child.py) holds torch and MMDetection, waits
warm for the next job, and says what it does in the messages of job.py; a crash in it never takes the lease with it.
"""
