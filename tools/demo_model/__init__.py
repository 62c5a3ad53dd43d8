"""How the built-in model was made: its world, the drift that was planted in it, and its training. No part of the package that is installed.

python3 -m tools.demo_model.train --out FOLDER --seed N
"""
