from infra.program.stack import deploy

deploy()
