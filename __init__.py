"""Fair Adapter as a ComfyUI custom node pack.

ComfyUI imports this file under a name made from its path, so everything below reaches the rest of the
repository by relative imports. It is also imported outside ComfyUI (by pytest, which sees a package in the
repository root) and must stay free of heavy imports: what a node needs, it imports when it runs.
"""
