"""``python -m attnres_lab.tracking`` is the mirroring process; RunMirror and SweepMirror start
it.
"""

from attnres_lab.tracking.worker import main

if __name__ == "__main__":
    main()
