"""What clients of Amazon Bedrock AgentCore Runtime speak to: commands, shells, and the workload, over HTTP."""
