"""Everything a held-out ticket is put together from: other sentences, cues, machines and layouts than `words_train.py` has."""

FAULTS = {
    "hydraulics": [
        "a puddle of hydraulic oil has formed beneath {m}",
        "the cylinders of {m} creep down at night and the pressure gauge shows 20 bar",
        "{m} has a torn hydraulic line and sprays oil",
        "the hydraulic unit of {m} screams as if it sucked air into the oil",
        "the piston rod of {m} is scored and leaves an oil film",
        "the hydraulic power pack of {m} builds up no pressure",
    ],
    "pneumatics": [
        "we hear air blowing out of a cracked hose at {m}",
        "the gripper of {m} has too little air pressure to hold the part",
        "a pneumatic valve on {m} is stuck half open",
        "the compressed air for {m} is full of water",
        "the suction cups on {m} have lost their vacuum",
        "the air cylinder at the outfeed of {m} does not return",
    ],
    "electrical": [
        "{m} blew two fuses within an hour",
        "sparks come from the terminal box of {m}",
        "the circuit breaker for {m} will not stay in",
        "one phase of the mains supply to {m} is dead",
        "the wires to the motor of {m} are scorched in the cabinet",
        "the voltage at the power supply unit of {m} collapses",
    ],
    "sensor": [
        "the light barrier on {m} no longer counts the bottles",
        "the readings of the humidity sensor on {m} make no sense",
        "the position encoder of {m} reports jumps",
        "the fill level sensor of {m} shows empty although the tank is full",
        "the weighing cell in {m} is off by half a kilo",
        "the proximity sensor behind the door of {m} flickers",
    ],
    "software": [
        "the control panel of {m} reboots in the middle of a job",
        "since the new software version {m} shows wrong tool tables",
        "the PLC in {m} hangs and needs a cold start",
        "saved recipes have vanished from the software of {m}",
        "the user interface of {m} does not react to the touch screen",
        "the login screen of {m} refuses every password",
    ],
    "network": [
        "{m} has vanished from the network",
        "the VPN tunnel to {m} breaks off again and again",
        "the server gets no data from {m}, the connection is refused",
        "the fieldbus link to {m} times out",
        "the ethernet cable to {m} is plugged in but there is no link",
        "since the new firewall {m} cannot be reached from the office",
    ],
    "mechanical": [
        "a bearing in {m} is seized",
        "the toothed belt on {m} skips",
        "loud knocking comes from the gearbox of {m}",
        "the axle of {m} is out of line and everything shakes",
        "the chain drive of {m} is loose and rattles",
        "the spindle bearing of {m} howls and vibrates",
    ],
    "cooling": [
        "{m} gets far too hot and shuts itself down",
        "no coolant reaches the tool on {m}",
        "the ventilator in the cabinet of {m} has failed and it is hot in there",
        "the chiller beside {m} cycles on and off and the water stays warm",
        "the coolant tank of {m} is leaking",
        "the cooling circuit of {m} is clogged with lime",
    ],
    "safety": [
        "pressing the emergency stop on {m} has no effect",
        "the safety door of {m} no longer locks while it turns",
        "the light curtain on {m} can be reached around",
        "the interlock switch on the guard of {m} was taped over",
        "{m} moves although the emergency stop is pushed in",
        "the guard over the rollers of {m} fell off",
    ],
    "parts": [
        "please make us an offer for a spare gearbox for {m}",
        "do you have filters for {m} in stock and what do they cost",
        "our order of spare seals for {m} is two weeks late",
        "which part number does the belt of {m} have",
        "we wish to order four rollers for {m}",
        "the replacement pump you delivered for {m} is the wrong model",
    ],
    "service": [
        "when could one of your technicians do the annual inspection of {m}",
        "we lost the operating manual of {m} and need a copy",
        "please arrange a training for three operators of {m}",
        "the maintenance contract for {m} ends soon and we want to renew it",
        "we need a new calibration certificate for {m}",
        "please book a maintenance visit for {m}",
    ],
}

OTHER = [
    "there is a mistake in the address on your invoice",
    "please stop sending me your newsletter",
    "many thanks to your team for the friendly help",
    "do you offer internships for students",
    "our bank account for refunds has changed",
    "I think I forgot my umbrella in your office",
    "we sell office chairs at the best price",
    "sorry, wrong recipient, please ignore this mail",
]

CUES = {
    "critical": [
        "Flames were seen and the hall was evacuated",
        "One worker is injured",
        "The complete plant is at a standstill",
        "There is a risk to people, come at once",
        "Thick smoke fills the room",
        "Every line in the factory is down",
    ],
    "high": [
        "The machine has been down since six",
        "Production on this line is stopped",
        "It is completely out of order",
        "Urgent, we need somebody today",
        "We had to shut it down and cannot produce",
        "The line stands and the customer is waiting",
    ],
    "normal": [
        "The machine still runs for now",
        "We can keep working, a bit slower",
        "It occurs from time to time",
        "A look at it this week would be good",
        "After a restart it works for some hours",
        "We get by for the moment",
    ],
    "low": [
        "No hurry with this",
        "It barely bothers us",
        "Next month is early enough",
        "This is not urgent",
        "It can wait until it suits you",
    ],
}

WISH_CUES = {
    "low": ["No hurry with this", "It is just a question", "Next month is early enough", "It can wait until it suits you"],
    "high": ["Urgent, we need somebody today", "Without it the line stands", "We are shut down and cannot produce until then"],
}

MAKERS = ["Norvik", "Stellan", "Brightwell", "Corvus", "Dornier", "Ekman", "Faraday", "Grunwald", "Hyperion", "Isobar", "Juno", "Kirkby", "Larkspur", "Moravia", "Nimbus", "Oberon", "Penrose", "Rushmore", "Sorrel", "Tamarack"]
PRODUCTS = ["Pro", "Eco", "Ultra", "Classic", "Master", "Swift"]
NAME_FORMS = ["{maker} {L}{L}-{d}{d}{d}", "{maker} {d}{d}0", "{maker} {product}", "{maker} {L}{d}{d}", "{L}{L}{d}-{d}{d}0", "{maker} {product} {d}{d}"]
NOUNS = ["stamping machine", "router", "cutter", "palletizer", "furnace", "bottling line", "drill", "bending machine"]

LEADS = ["Hello support,", "Hi,", "Morning all,", "To whom it may concern,", "Hi, Ines from the Porto plant here.", "Good evening, this is Mr Okafor."]
CLOSINGS = ["Many thanks", "Cheers, Dave", "Best regards, Priya Nair", "Please reply soon", "Ring me on 0171 5550", "Yours, the maintenance crew"]
REMARKS = ["Error message E-903 is on the screen", "The alarm list shows code 118", "Our order number is 4500-7781", "It started after the weekend", "Cleaning it did not help", "It is from 2016"]
WISH_REMARKS = ["Our order number is 4500-7781", "It is from 2016", "You will find our address below"]
SECOND_FAULT = ["{first}. Apart from that, {second}, which is a minor thing.", "Most of all: {first}. As a side note, {second}.", "{first}. Also {second}, but we care about the first one."]
PROSE = ["{lead} {fault}. {remark}. {cue}. {closing}.", "{lead} {cue}. {fault}. {closing}.", "{remark}. {cue}. {fault}.", "{lead} {cue}. What it is about: {fault}. {closing}.", "{lead} we have an issue: {fault}. {cue}."]
PROSE_WITHOUT_CUE = ["{lead} {remark}. {fault}.", "{fault}. {remark}. {closing}.", "{lead} a note from us: {fault}."]
LETTERS = ["{lead} this is about something else: {fault}. {closing}.", "{lead} a short note: {fault}.", "{fault}. That is all. {closing}."]
FORMS = ["Unit {name} / {fault} / {cue}", "Subject: {name}. {cue}. {fault}. {closing}.", "Equipment {name}: {fault}. {cue}. {remark}."]
