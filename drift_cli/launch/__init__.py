"""Starts workers: on this machine, under SLURM, on Ray. A worker is `drift work RUN`; what workers have in common is the run's folder and nothing else."""
