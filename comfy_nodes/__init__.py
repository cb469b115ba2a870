"""The ComfyUI nodes: thin host code over `shared/`. The entry is `extension.comfy_entrypoint`."""
