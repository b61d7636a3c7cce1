"""Agent Skills: folders of instructions, references and scripts, in the format of agentskills.io."""
