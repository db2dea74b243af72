"""What a run will cost before anything of it is started: `solon run CONFIG --dry-run`.

``models`` what a model is, from its description alone; ``workload`` calls and tokens by stage and
role, and ``counting`` how many there will be; ``memory`` bytes by device; ``hardware`` what
accelerators can do, and how long it takes them; ``surroundings`` services, disk and caches as they
are now; ``dry_run`` all of it together. Nothing here loads weights, starts a process that stays, or
asks the network for a model.
"""
