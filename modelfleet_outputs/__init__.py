"""What a model fleet's stack exports, for programs that use the fleet.

    import pulumi
    from modelfleet_outputs.stack import Fleet

    fleet = Fleet(pulumi.StackReference("organization/modelfleet/prod"))
    base_url = fleet.outputs.apply(lambda outputs: outputs.url)

Without Pulumi, `parse` takes the JSON of `pulumi stack output fleet --json`.
"""

from modelfleet_outputs.contract import VERSION, FleetOutputs, ModelOutput, OutputsError, StorageClasses, parse

__all__ = ["VERSION", "FleetOutputs", "ModelOutput", "OutputsError", "StorageClasses", "parse"]
