from .examination import examine_machine as examine_machine
